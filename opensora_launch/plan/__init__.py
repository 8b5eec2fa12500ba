"""Request + model facts + machine facts -> Plan, or every reason why not. No torch, no files, no clock."""
