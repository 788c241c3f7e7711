"""What conversion knows of each family of language models, one module a family."""
