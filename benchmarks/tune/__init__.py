"""What tuning is worth: the choice of examples."""
