"""What `train rl` needs: episodes, a step's groups of them, and the policy loss as configured."""
