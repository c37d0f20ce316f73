"""What every package may import: block types, errors, lists in messages. It imports the standard library alone."""
