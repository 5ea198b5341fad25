"""What `train distill` needs: teachers, lessons, and how far a student is from its teacher."""
