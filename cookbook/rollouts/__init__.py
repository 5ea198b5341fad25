"""Parts of `lossbook train rl`: episodes, the groups of a step, and the configured policy loss."""
