# The AWS resources of Roofscale, see ../README.md:
#   terraform init && terraform apply -var bucket=my-bucket
# The policies are the files in ../iam, unchanged.

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.0"
    }
  }
}

variable "region" {
  description = "AWS region of everything"
  type        = string
  default     = "eu-west-1"
}

variable "bucket" {
  description = "S3 bucket to create; its name must be unused in all of AWS"
  type        = string
}

variable "role" {
  description = "name of the IAM role that jobs run as"
  type        = string
  default     = "RoofscaleJob"
}

variable "kms_key" {
  description = "ARN of a KMS key for the bucket; empty: S3's own key. The key policy must allow both roles to use it"
  type        = string
  default     = ""
}

variable "mlflow" {
  description = "whether to create an MLflow App for tracking"
  type        = bool
  default     = false
}

provider "aws" {
  region = var.region
  default_tags {
    tags = { project = "roofscale" }
  }
}

data "aws_caller_identity" "current" {}

locals {
  filled_in = {
    ACCOUNT = data.aws_caller_identity.current.account_id
    REGION  = var.region
    BUCKET  = var.bucket
    ROLE    = var.role
  }
  # To be attached to users, groups, or the role of a CI.
  for_people = toset(concat(["launcher", "uploader"], var.mlflow ? ["mlflow-user"] : []))
}

# --- Data, run configs, checkpoints, results and MLflow's artifacts ---

resource "aws_s3_bucket" "roofscale" {
  bucket = var.bucket
}

resource "aws_s3_bucket_public_access_block" "roofscale" {
  bucket                  = aws_s3_bucket.roofscale.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_server_side_encryption_configuration" "roofscale" {
  bucket = aws_s3_bucket.roofscale.id
  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm     = var.kms_key == "" ? "AES256" : "aws:kms"
      kms_master_key_id = var.kms_key == "" ? null : var.kms_key
    }
    bucket_key_enabled = var.kms_key != ""
  }
}

# --- The image ---

resource "aws_ecr_repository" "roofscale" {
  name = "roofscale"
}

# --- Roles and policies ---

resource "aws_iam_role" "job" {
  name               = var.role
  assume_role_policy = templatefile("${path.module}/../iam/trust.json", local.filled_in)
}

resource "aws_iam_role_policy" "job" {
  name   = "roofscale"
  role   = aws_iam_role.job.id
  policy = templatefile("${path.module}/../iam/job-role.json", local.filled_in)
}

# A job logs its run to the MLflow App itself.
resource "aws_iam_role_policy" "job_mlflow" {
  count  = var.mlflow ? 1 : 0
  name   = "roofscale-mlflow"
  role   = aws_iam_role.job.id
  policy = templatefile("${path.module}/../iam/job-mlflow.json", local.filled_in)
}

resource "aws_iam_policy" "people" {
  for_each = local.for_people
  name     = "roofscale-${each.key}"
  policy   = templatefile("${path.module}/../iam/${each.key}.json", local.filled_in)
}

# --- MLflow App ---

resource "aws_iam_role" "mlflow" {
  count              = var.mlflow ? 1 : 0
  name               = "${var.role}Mlflow"
  assume_role_policy = templatefile("${path.module}/../iam/trust.json", local.filled_in)
}

resource "aws_iam_role_policy" "mlflow" {
  count  = var.mlflow ? 1 : 0
  name   = "roofscale"
  role   = aws_iam_role.mlflow[0].id
  policy = templatefile("${path.module}/../iam/mlflow-role.json", local.filled_in)
}

resource "aws_sagemaker_mlflow_app" "roofscale" {
  count              = var.mlflow ? 1 : 0
  name               = "roofscale"
  role_arn           = aws_iam_role.mlflow[0].arn
  artifact_store_uri = "s3://${aws_s3_bucket.roofscale.id}/mlflow"
  depends_on         = [aws_iam_role_policy.mlflow]
}

# --- Values for sagemaker.yaml and MLFLOW_TRACKING_URI ---

output "sagemaker_yaml" {
  value = <<-Y
    role: ${aws_iam_role.job.arn}
    bucket: ${aws_s3_bucket.roofscale.id}
    image: ${aws_ecr_repository.roofscale.repository_url}:1
    region: ${var.region}
    budget_usd: 5
  Y
}

output "policies_for_people" {
  value = { for name, policy in aws_iam_policy.people : name => policy.arn }
}

output "mlflow_tracking_uri" {
  value = one(aws_sagemaker_mlflow_app.roofscale[*].arn)
}
