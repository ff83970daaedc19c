# Bridge sampling by the R package of this name, of draws that others made: prints log p(x), its
# standard error, and the seconds that it took.
#
#     Rscript benchmarks/bridgesampling.R PROBLEM draws.csv data.csv SEED
#
# draws.csv has a column per latent, data.csv those of the problem's data in order.

suppressMessages(library(bridgesampling))

words <- commandArgs(trailingOnly = TRUE)
problem <- words[1]
draws <- read.csv(words[2])
data <- if (file.size(words[3]) > 1) as.list(read.csv(words[3])) else list()
set.seed(as.integer(words[4]))

normal <- function(x, mean, sd) sum(dnorm(x, mean, sd, log = TRUE))

in_box <- function(z, low, high) -length(z) * log(high - low)

ring <- function(z, centre) {
  z[1] <- z[1] - centre
  normal(sqrt(sum(z^2)), 2, 0.1)
}

log_posteriors <- list(
  "pines" = function(z, data) {
    scale <- z[["precision"]]^-0.5
    dgamma(z[["precision"]], 3, rate = 180000, log = TRUE) +
      normal(z[["intercept"]], 3000, scale / sqrt(0.06)) +
      normal(z[["slope"]], 185, scale / sqrt(6)) +
      normal(data[[2]], z[["intercept"]] + z[["slope"]] * data[[1]], scale)
  },
  "eight-schools" = function(z, data) {
    theta <- z[grep("theta", names(z))]
    normal(z[["mu"]], 0, 5) + log(2) + dcauchy(z[["tau"]], 0, 5, log = TRUE) +
      normal(theta, z[["mu"]], z[["tau"]]) + normal(data[[1]], theta, data[[2]])
  },
  "shells-5" = function(z, data) {
    rings <- c(ring(z, -3.5), ring(z, 3.5))
    in_box(z, -6, 6) + max(rings) + log1p(exp(min(rings) - max(rings)))
  },
  "rosenbrock" = function(z, data) {
    in_box(z, -5, 5) - (1 - z[[1]])^2 - 100 * (z[[2]] - z[[1]]^2)^2
  },
  "pumps" = function(z, data) {
    theta <- z[grep("theta", names(z))]
    dexp(z[["alpha"]], 1, log = TRUE) + dgamma(z[["beta"]], 0.1, rate = 1, log = TRUE) +
      sum(dgamma(theta, z[["alpha"]], rate = z[["beta"]], log = TRUE)) +
      sum(dpois(data[[1]], theta * data[[2]], log = TRUE))
  }
)

names <- colnames(draws)
box <- c("shells-5" = 6, "rosenbrock" = 5)
positive <- names %in% c("precision", "tau", "alpha", "beta") | (problem == "pumps")
lb <- setNames(ifelse(positive, 0, -Inf), names)
ub <- setNames(rep(Inf, length(names)), names)
if (problem %in% names(box)) {
  lb[] <- -box[[problem]]
  ub[] <- box[[problem]]
}

started <- proc.time()[["elapsed"]]
found <- bridge_sampler(as.matrix(draws), log_posterior = log_posteriors[[problem]], data = data,
                        lb = lb, ub = ub, silent = TRUE)
seconds <- proc.time()[["elapsed"]] - started
cat(sprintf("%.12f %.12f %.3f\n", found$logml, error_measures(found)$cv, seconds))
