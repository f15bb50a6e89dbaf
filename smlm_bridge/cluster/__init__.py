"""Movies and folders through one or many processes: recipes that travel, engines that run them, parts kept."""
