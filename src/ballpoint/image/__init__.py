"""The standard image: recipes, builds, the catalogue of what was built, and what a node injects into its sprites."""
