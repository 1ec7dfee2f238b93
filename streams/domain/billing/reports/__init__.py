"""What people see of usage and of what is billed."""
