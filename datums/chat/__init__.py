"""Conversations: messages, chat templates, and the mask of learned tokens."""
