"""Where code written for the Tinker SDK looks for its interfaces."""
