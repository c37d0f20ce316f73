"""What every package may import: block types, errors, lists in messages. Importing it loads the standard library alone."""
