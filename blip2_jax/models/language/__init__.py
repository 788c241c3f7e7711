"""Language models and the interface that they share."""
