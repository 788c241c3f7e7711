"""The paper's tables: as evaluations, and in small on the shapes world."""
