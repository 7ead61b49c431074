"""The test suite; a package, so that tests share modules by name."""
