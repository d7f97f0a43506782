"""The scheduler's side of jobs: takes them, keeps them, decides where they run, and sees to it that they end."""
