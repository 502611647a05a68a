"""Five graded assignments: variants of their conventions, checks for students, releases and grading for instructors."""
