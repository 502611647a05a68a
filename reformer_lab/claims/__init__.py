"""The paper's claims, run again: what each of them says, how it is tested here, and what came out."""
