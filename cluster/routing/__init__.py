"""Which copies are asked, how many must answer, and how an answer is waited for. Knows no rows and no HTTP."""
