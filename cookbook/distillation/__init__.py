"""Parts of `lossbook train distill`: teachers, examples, and the divergence of a student from its teacher."""
