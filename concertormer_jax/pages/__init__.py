"""Pages for a browser: before and after under a slider, as one file or as an application on this machine."""
