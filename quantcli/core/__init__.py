"""The base package that every other may import: block types, errors, lists in messages. It loads only the standard
library."""
