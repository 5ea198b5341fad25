"""What was asked and what was answered, in a database, so that every request runs once."""
