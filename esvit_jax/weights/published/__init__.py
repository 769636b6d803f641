"""Files of published networks, recognised by their keys and shapes."""
