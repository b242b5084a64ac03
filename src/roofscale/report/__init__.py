"""What a person reads: tables, figures and the strategy document."""
