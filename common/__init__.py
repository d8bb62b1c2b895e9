"""What all three projects share: each file is one topic, and none of them imports a project."""
