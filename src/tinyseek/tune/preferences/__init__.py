"""Learning from preferences: pairs of a better and a worse answer (DPO and its kin), answers with a thumb (KTO)."""
