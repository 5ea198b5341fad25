"""The service, its clients, and futures."""
