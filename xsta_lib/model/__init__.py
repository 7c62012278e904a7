"""The paper: sharing (section 3.2), teaching (3.3), aligning (3.4), and the reader that joins them (3.1, 3.5)."""
