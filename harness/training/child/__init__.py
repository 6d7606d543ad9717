"""The process of a training program: it runs the program under the recorder."""
