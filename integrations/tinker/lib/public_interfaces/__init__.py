"""Clients and futures, where code written for the Tinker SDK imports them from."""
