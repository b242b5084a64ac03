"""What each command of ``cli`` does: put the parts together, and print."""
