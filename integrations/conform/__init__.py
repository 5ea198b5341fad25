"""Promises of a server of Tinker's protocol, checked through its SDK."""
