"""Right training programs of three styles, whose texts the mistakes change; they are written as users write."""
