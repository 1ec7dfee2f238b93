"""What tokens cost, and what Stripe must know of that."""
