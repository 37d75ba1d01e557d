"""What the update of full fine-tuning looks like on real data: is it the kind that clusters could hold?"""
