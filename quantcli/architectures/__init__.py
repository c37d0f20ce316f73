"""One TOML file per architecture, and the closed vocabulary of transforms they name."""
