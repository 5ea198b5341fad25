"""What is different where several ranks run a call together."""
