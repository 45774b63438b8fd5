"""What differs from one revision's transport to another's."""
