"""What turns declarations and records into verdicts, tables, figures and pages."""
