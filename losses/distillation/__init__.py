"""Distillation losses: make a student's distribution that of a teacher."""
