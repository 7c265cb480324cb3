"""What a scheduling decision costs, and how that grows: the policy alone, on one core, without a store."""
