"""What everything else stands on: errors, checks of models, files, tables, the base of surgery layers."""
