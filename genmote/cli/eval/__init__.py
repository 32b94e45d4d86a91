"""Tell what a choice costs and gains, and how good a model is."""
