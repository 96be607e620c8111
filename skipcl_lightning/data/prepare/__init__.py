"""From a canonical table to checked, filtered, numbered and split sessions."""
