"""The runtime wing: image files become results through an artefact. No torch in here."""
