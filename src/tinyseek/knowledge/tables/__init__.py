"""Questions over sheets: XLSX and CSV files as tables of a database in a process of its own, asked by checked, read-only SQL."""
