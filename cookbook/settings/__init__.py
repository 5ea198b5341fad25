"""The settings of all recipes: pydantic models whose fields are the flags. Imported without torch, so that help is quick."""
