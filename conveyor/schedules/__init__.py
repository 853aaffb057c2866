"""Schedules: cron expressions in a time zone, and which of the times that they name start a run now. Pure."""
