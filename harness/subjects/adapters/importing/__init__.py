"""Import a subject's file as its project would, whatever its top level does; change its constants in memory."""
