"""Floor 2: what is handed out to those who never see this code."""
